"""Balanced analysis of variance against SciPy, least squares and exact cases."""

import math
from itertools import combinations, product

import numpy as np
import polars as pl
import pytest
from scipy import stats

from neoteny.analysis import anova


def design(levels, replicates, seed=0):
    """A full factorial in shuffled order with normal responses."""
    rows = np.array(list(product(*(range(count) for count in levels), range(replicates))))
    rng = np.random.default_rng(seed)
    rows = rows[rng.permutation(len(rows))]
    table = {f"f{i}": rows[:, i] for i in range(len(levels))}
    return {**table, "y": rng.normal(size=len(rows))}, [f"f{i}" for i in range(len(levels))]


def by_name(found):
    return {effect.factors: effect for effect in found.effects}


def test_one_factor_equals_f_oneway():
    table, factors = design((4,), 6)
    (effect,) = anova(table, factors, "y").effects
    expected = stats.f_oneway(*(table["y"][table["f0"] == level] for level in range(4)))
    assert (effect.f, effect.p) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-10)
    assert effect.df == 3


@pytest.mark.parametrize("levels", [(2, 3, 4), (2, 2, 2, 2, 2)])
def test_factorial_equals_least_squares(levels):
    table, factors = design(levels, 3, seed=1)
    found = anova(table, factors, "y")

    def coded(factor, count):  # effect coding
        code = np.eye(count)[table[factor]]
        return code[:, :-1] - code[:, -1:]

    columns = {}
    for order in range(1, len(factors) + 1):
        for subset in combinations(range(len(factors)), order):
            block = np.ones((len(table["y"]), 1))
            for axis in subset:
                block = np.einsum("ni,nj->nij", block, coded(factors[axis], levels[axis])).reshape(len(block), -1)
            columns[tuple(factors[axis] for axis in subset)] = block

    def rss(blocks):
        x = np.concatenate([np.ones((len(table["y"]), 1)), *blocks], axis=1)
        return ((table["y"] - x @ np.linalg.lstsq(x, table["y"], rcond=None)[0]) ** 2).sum()

    full = rss(columns.values())
    assert found.residual_ss == pytest.approx(full)
    effects = by_name(found)
    assert set(effects) == set(columns)
    for name, block in columns.items():
        without = rss([other for key, other in columns.items() if key != name])
        assert effects[name].ss == pytest.approx(without - full, abs=1e-9)
        assert effects[name].df == block.shape[1]


def test_sums_of_squares_and_degrees_of_freedom_add_up():
    table, factors = design((2, 3, 2), 4, seed=2)
    found = anova(table, factors, "y")
    total = ((table["y"] - table["y"].mean()) ** 2).sum()
    assert found.total_ss == pytest.approx(total, rel=1e-12)
    assert sum(e.ss for e in found.effects) + found.residual_ss == pytest.approx(total, abs=1e-9)
    assert sum(e.df for e in found.effects) + found.residual_df == 47
    noise = found.residual_ss / found.residual_df
    for effect in found.effects:
        assert effect.f == pytest.approx(effect.ss / effect.df / noise)
        assert effect.p == pytest.approx(stats.f.sf(effect.f, effect.df, found.residual_df))
        assert effect.eta2 == pytest.approx(effect.ss / total)
        assert effect.partial_eta2 == pytest.approx(effect.ss / (effect.ss + found.residual_ss))
        assert effect.omega2 == pytest.approx((effect.ss - effect.df * noise) / (total + noise))


def test_shift_scale_and_names_do_not_matter():
    table, factors = design((2, 3), 3, seed=3)
    base = anova(table, factors, "y")
    shifted = anova({**table, "y": table["y"] + 1e6}, factors, "y")
    scaled = anova({**table, "y": 3 * table["y"]}, factors, "y")
    renamed = anova({**table, "f1": np.array(["z", "a", "m"])[table["f1"]]}, factors, "y")
    for one, shift, scale, name in zip(base.effects, shifted.effects, scaled.effects, renamed.effects, strict=True):
        assert shift.ss == pytest.approx(one.ss, rel=1e-6)
        assert scale.ss == pytest.approx(9 * one.ss)
        assert scale.f == pytest.approx(one.f)
        assert name.ss == pytest.approx(one.ss)


def test_additive_data_has_no_interactions():
    table, factors = design((2, 3, 2), 2)
    y = 0.1 * table["f0"] + 0.7 * table["f1"] ** 2 + 1 / 3 * table["f2"]
    found = anova({**table, "y": y}, factors, "y")
    for effect in found.effects:
        assert (effect.ss > 0) == (len(effect.factors) == 1)
        assert math.isnan(effect.f) == (len(effect.factors) > 1)
    assert found.residual_ss == 0
    assert found.interaction_share == 0


def test_product_data_has_no_main_effects():
    table, factors = design((2, 3), 2)
    y = (2 * table["f0"] - 1) * (table["f1"] - 1) * 0.1
    effects = by_name(anova({**table, "y": y}, factors, "y"))
    assert effects[("f0",)].ss == effects[("f1",)].ss == 0
    assert effects[("f0", "f1")].ss == pytest.approx(12 * 0.01 * 2 / 3)


def test_equal_data_has_no_variance():
    table, factors = design((2, 2), 2)
    found = anova({**table, "y": np.full(8, 0.1)}, factors, "y")
    assert found.total_ss == found.residual_ss == 0
    for effect in found.effects:
        assert effect.ss == 0
        assert math.isnan(effect.f)
        assert math.isnan(effect.p)
    assert math.isnan(found.interaction_share)


def test_noise_gives_the_interaction_share_of_its_degrees_of_freedom():
    rng = np.random.default_rng(0)
    table, factors = design((2,) * 5, 5)
    shares, shrunken, small = [], [], 0
    for _ in range(60):
        found = anova({**table, "y": rng.normal(size=160)}, factors, "y")
        shares.append(found.interaction_share)
        shrunken.append(found.shrunken_interaction_share)
        small += sum(effect.p < 0.05 for effect in found.effects)
    assert np.mean(shares) == pytest.approx(26 / 31, abs=0.03)
    assert small / (60 * 31) == pytest.approx(0.05, abs=0.02)
    assert np.nanstd(shrunken) > np.std(shares)


def test_without_replicates_high_orders_are_the_residual():
    table, factors = design((2, 3, 2), 1, seed=4)
    found = anova(table, factors, "y")
    assert found.pooled == (("f0", "f1", "f2"),)
    assert found.residual_df == 2
    assert len(found.effects) == 6
    assert sum(e.ss for e in found.effects) + found.residual_ss == pytest.approx(found.total_ss)
    assert all(math.isfinite(effect.p) for effect in found.effects)
    table, factors = design((2, 3), 1)
    two = anova(table, factors, "y")
    assert (two.residual_df, two.pooled) == (0, ())
    assert all(math.isnan(e.f) and math.isnan(e.p) and math.isnan(e.partial_eta2) for e in two.effects)


def test_a_polars_frame_will_do():
    table, factors = design((2, 2), 3)
    frame = pl.DataFrame(table).with_columns(pl.col("f0").cast(pl.String))
    assert anova(frame, factors, "y") == anova(table, factors, "y")


def test_designs_that_cannot_be_analysed_are_refused():
    table, factors = design((2, 2), 2)
    short = {name: column[:-1] for name, column in table.items()}
    with pytest.raises(ValueError, match="not balanced: cells of f0 x f1 hold 1 to 2"):
        anova(short, factors, "y")
    keep = ~((table["f0"] == 1) & (table["f1"] == 1))
    with pytest.raises(ValueError, match="hold 0 to 2"):
        anova({name: column[keep] for name, column in table.items()}, factors, "y")
    with pytest.raises(ValueError, match="f0 has 1 level"):
        anova({**table, "f0": np.zeros(8)}, factors, "y")
    with pytest.raises(ValueError, match="not finite"):
        anova({**table, "y": np.full(8, np.nan)}, factors, "y")
    with pytest.raises(ValueError, match="different column names"):
        anova(table, ["f0", "f0"], "y")
