"""Case studies 2 and 3, treatments and width: claims on records made up so that the right verdict is known, scripts,
networks, and presets.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import polars as pl
import pytest

from neoteny.analysis.claims import evaluate
from neoteny.errors import UsageError
from neoteny.interventions import LeaveFollowers, Redo, Reset, ResetOptimizer, ShrinkPerturb
from neoteny.lab import configs
from neoteny.lab.plan import Request, make_plan
from neoteny.learners import Transitions, dqn
from neoteny.networks import BatchNorm, LayerNorm, SpectralNorm, resnet, split_trainable
from neoteny.studies.games import minatar_agent, minatar_stream
from neoteny.studies.plasticity import CLAIMS, STUDY, summary
from neoteny.studies.plasticity.agents import (
    TREATMENTS,
    AgentConfig,
    ProbeTask,
    interventions,
    learner,
    maker,
    script,
    stream,
    values,
)
from neoteny.studies.plasticity.figures import beside_the_paper
from neoteny.studies.plasticity.games import ATARI, AtariConfig, GameConfig, game_learner, game_script
from neoteny.studies.plasticity.games import agent as atari_agent
from neoteny.studies.plasticity.published import FINAL, INITIAL, RISE, published
from neoteny.studies.plasticity.runs import compared, correlations, probed
from neoteny.studies.plasticity.shared import source
from neoteny.studies.plasticity.walk import WalkConfig, times
from neoteny.studies.plasticity.walk import learner as walk_learner
from neoteny.studies.plasticity.walk import script as walk_script
from neoteny.studies.plasticity.walk import stream as walk_stream
from neoteny.training import Intervene, Probe, Train
from neoteny.training.runner import Runner

SEEDS = 8
BASE = AgentConfig(width=128, iterations=2, probe_every=1, updates=1_000)
AS_CLAIMED = {
    ("none", "scalar"): 0.3,
    ("none", "two_hot"): 0.1,
    ("layer_norm", "scalar"): 0.2,
    ("reset_last", "scalar"): 0.1,
    ("shrink_perturb", "scalar"): 0.5,
    ("weight_decay", "scalar"): 0.31,
    ("reset_optimizer", "scalar"): 0.32,
}
"""(treatment, output) -> rise."""


def agent(
    config: AgentConfig, experiment: str, rise: float, *, growth: float = 1.0, statistics=None, start: float = 0.2
) -> list[dict]:
    """The records of one agent: the probe task at 0, 1 and 2 iterations, curvature that grows, and statistics."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    common = {"run": f"{experiment}-{sorted(fields.items())}", "experiment": experiment, **fields}
    rows = []

    def record(step, metric, place, value):
        rows.append({**common, "step": step, "metric": metric, "place": place, "value": float(value)})

    for number, step in enumerate((1, 1_000, 2_000)):
        final = start + rise * number / 2
        for place, value in (("initial", 0.7), ("final", final), ("baseline", 0.5), ("diverged", 0.0)):
            record(step, "plasticity", place, value)
        record(step, "output_sharpness", "all", 2.0 * np.exp(growth * number / 2))
    record(2_000, "plasticity", "regret", final - 0.1)
    for (metric, place), value in (statistics or {}).items():
        record(2_000, metric, place, value)
    return rows


def experiments(
    rises=AS_CLAIMED, *, growth=None, statistics=None, noise=0.01, labels=("true", "random"), starts=0.0, **changed
):
    """Records of interventions; `statistics(rise, labels)` gives those of one agent. Losses at the start differ by as
    much as `starts`.
    """
    rng, rows = np.random.default_rng(0), []
    for (treatment, output), rise in rises.items():
        for kind in labels:
            for seed in range(SEEDS):
                config = replace(BASE, treatment=treatment, output=output, labels=kind, seed=seed, **changed)
                mine = rise + rng.normal(scale=noise)
                grown = (growth or {}).get(treatment, 2.0) + rng.normal(scale=0.1)
                held = statistics(mine, kind, rng) if statistics else None
                start = 0.2 + starts * rng.random()
                rows += agent(config, "interventions", mine, growth=grown, statistics=held, start=start)
    return pl.DataFrame(rows)


def widths(rises: dict[int, float], noise=0.01) -> pl.DataFrame:
    rng, rows = np.random.default_rng(1), []
    for width, rise in rises.items():
        for period in (1, 100):
            for seed in range(SEEDS):
                config = replace(BASE, width=width, target_period=period, seed=seed)
                rows += agent(config, "width", rise + rng.normal(scale=noise))
    return pl.DataFrame(rows)


def walks(sharper: float, interfering: float, noise=0.05) -> pl.DataFrame:
    """Records of walk: what gradient descent has at the end beyond the walk, in log curvature and negative share."""
    rng, rows = np.random.default_rng(2), []
    for path in ("gradient", "walk"):
        for seed in range(SEEDS):
            config = WalkConfig(path=path, seed=seed)
            fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
            common = {"run": f"walk-{path}-{seed}", "experiment": "walk", **fields}
            for step in times(config):
                more = (path == "gradient") * step / times(config)[-1]
                largest = np.exp(1 + more * sharper + rng.normal(scale=noise))
                negative = 0.3 + more * interfering + rng.normal(scale=0.1 * noise)
                measured = [("output_spectrum", "largest", largest), ("gradient_covariance", "negative", negative)]
                for i in range(3):
                    measured += [("output_spectrum", f"eigenvalue:{i}", largest * i / 2)]
                    measured += [("output_spectrum", f"weight:{i}", 1 / 3)]
                measured += [("gradient_cosines", f"{i}|{j}", 0.1 * (i - j)) for i in range(4) for j in range(i + 1, 4)]
                for metric, place, value in measured:
                    rows.append({**common, "step": step, "metric": metric, "place": place, "value": float(value)})
    return pl.DataFrame(rows)


def verdicts(frame: pl.DataFrame) -> dict[str, dict]:
    return {claim["id"]: claim for claim in evaluate(CLAIMS, frame)}


def outcomes(frame: pl.DataFrame, *names: str) -> list[str]:
    found = verdicts(frame)
    return [found[f"UPL-{name}"]["verdict"] for name in names]


TREATMENT_CLAIMS = ("8", "9", "10", "11", "12", "13", "16")


def test_treatments_hold_where_it_is_so():
    frame = experiments(growth={"layer_norm": 0.5})
    found = verdicts(frame)
    assert {found[f"UPL-{name}"]["verdict"] for name in (*TREATMENT_CLAIMS, "15")} == {"holds"}
    parts = found["UPL-8"]["parts"]
    assert [part["name"] for part in parts] == [
        "mnist_digits, mlp, random labels, adam",
        "mnist_digits, mlp, true labels, adam",
    ]
    assert all(part["measured"] == pytest.approx(-0.2, abs=0.02) and part["n"] == SEEDS for part in parts)
    assert found["UPL-15"]["parts"][0]["measured"] == pytest.approx(-1.5, abs=0.2)


def test_treatments_fail_where_the_opposite_is_so():
    worse = {**dict.fromkeys(AS_CLAIMED, 0.5), ("none", "scalar"): 0.3, ("shrink_perturb", "scalar"): 0.1,
             ("reset_optimizer", "scalar"): 0.1}  # fmt: skip
    frame = experiments(worse, growth={"layer_norm": 4.0})
    assert set(outcomes(frame, *TREATMENT_CLAIMS, "15")) == {"fails"}


@pytest.mark.parametrize(
    ("claim", "treated", "inside", "outside"),
    [
        ("8", ("none", "two_hot"), 0.29, 0.31),
        ("10", ("layer_norm", "scalar"), 0.29, 0.31),
        ("11", ("reset_last", "scalar"), 0.29, 0.31),
        ("12", ("shrink_perturb", "scalar"), 0.285, 0.275),
        ("13", ("weight_decay", "scalar"), 0.345, 0.355),
        ("13", ("weight_decay", "scalar"), 0.255, 0.245),
        ("16", ("reset_optimizer", "scalar"), 0.285, 0.275),
    ],
)
def test_thresholds_are_those_of_the_specification(claim, treated, inside, outside):
    for rise, expected in ((inside, "holds"), (outside, "fails")):
        frame = experiments({("none", "scalar"): 0.3, treated: rise}, noise=1e-4)
        assert outcomes(frame, claim) == [expected]


def test_one_setting_that_fails_is_enough_and_noise_is_inconclusive():
    good = experiments(labels=("true",))
    bad = experiments({**AS_CLAIMED, ("none", "two_hot"): 0.5}, labels=("random",))
    assert outcomes(pl.concat([good, bad]), "8") == ["fails"]
    assert outcomes(experiments({**AS_CLAIMED, ("none", "two_hot"): 0.3}, noise=0.2), "8") == ["inconclusive"]


def test_holm_asks_more_of_a_family():
    """Differences that clear 0 alone in one setting, and not once there are two to choose from."""

    def frame(kinds):
        rows = []
        for kind in kinds:
            for seed in range(SEEDS):
                bare = replace(BASE, labels=kind, seed=seed)
                rows += agent(bare, "interventions", 0.3)
                offset = -0.1 + 0.101 * (-1) ** seed if kind == "true" else 0.1 * (-1) ** seed
                rows += agent(replace(bare, output="two_hot"), "interventions", 0.3 + offset)
        return pl.DataFrame(rows)

    assert outcomes(frame(("true",)), "8") == ["holds"]
    parts = verdicts(frame(("true", "random")))["UPL-8"]["parts"]
    assert [part["verdict"] for part in parts] == ["inconclusive", "inconclusive"]


def test_the_family_of_holm_is_all_claims_about_treatments_together():
    """The same difference that holds alone, beside another claim's that is not clear."""
    two_hot, shrunk = [], []
    for seed in range(SEEDS):
        bare = replace(BASE, labels="true", seed=seed)
        sign = (-1) ** seed
        two_hot += agent(bare, "interventions", 0.3)
        two_hot += agent(replace(bare, output="two_hot"), "interventions", 0.3 - 0.1 + 0.101 * sign)
        shrunk += agent(replace(bare, treatment="shrink_perturb"), "interventions", 0.3 + 0.2 * sign)
        shrunk += agent(replace(bare, treatment="reset_optimizer"), "interventions", 0.3 + 0.2 * sign)
    assert outcomes(pl.DataFrame(two_hot), "8") == ["holds"]
    assert outcomes(pl.DataFrame(two_hot + shrunk), "8", "12", "16") == ["inconclusive"] * 3
    of_another = [row for row in shrunk if row["treatment"] == "reset_optimizer"]
    assert outcomes(pl.DataFrame(two_hot + of_another), "8") == ["holds"], "UPL-16 is none of the family"


def test_the_rise_of_the_first_probe_is_zero_and_a_diverged_agent_learned_nothing():
    frame = experiments(labels=("true",))
    table = probed(frame, "interventions")
    assert table.filter(pl.col("iteration") == 0)["rise"].to_list() == [0.0] * (len(AS_CLAIMED) * SEEDS)
    lost = frame["run"][0]
    kept = frame.filter((pl.col("run") != lost) | (pl.col("step") == 1))
    assert lost not in probed(kept, "interventions")["run"], "unfinished runs are left out"
    died = frame.filter(pl.col("run") == lost).head(1)
    died = died.with_columns(metric=pl.lit("diverged"), step=pl.lit(500, died["step"].dtype))
    mine = probed(pl.concat([kept, died]), "interventions").filter(pl.col("run") == lost)
    np.testing.assert_allclose(mine["initial"], [0.2, 0.2, 0.2])
    np.testing.assert_allclose(mine["final"], [0.2, 0.5, 0.5])
    np.testing.assert_allclose(mine["rise"], [0.0, 0.3, 0.3])
    assert mine["regret"].null_count() == 3
    regret = table.filter(pl.col("iteration") == 2).select(pl.col("regret") - pl.col("final")).to_series()
    np.testing.assert_allclose(regret, -0.1)


def test_comparisons_are_paired_by_seed():
    table = probed(experiments(labels=("true",)), "interventions").filter(pl.col("iteration") == 2)
    (difference,) = compared(table, "rise", ("none", "two_hot")).values()
    one, two = (
        table.filter((pl.col("treatment") == "none") & (pl.col("output") == output)).sort("seed")["rise"].to_numpy()
        for output in ("two_hot", "scalar")
    )
    np.testing.assert_array_equal(difference, one - two)
    fewer = table.filter((pl.col("output") == "scalar") | (pl.col("seed") < 3))
    assert len(next(iter(compared(fewer, "rise", ("none", "two_hot")).values()))) == 3


def test_the_walk():
    assert outcomes(walks(1.0, 0.2), "5", "6") == ["holds", "holds"]
    assert outcomes(walks(-1.0, -0.2), "5", "6") == ["fails", "fails"]
    assert outcomes(walks(0.01, 0.001), "5", "6") == ["inconclusive", "inconclusive"]
    found = verdicts(walks(1.0, 0.2))["UPL-5"]
    assert found["measured"] == pytest.approx(1.0, abs=0.1)
    assert [part["name"].split(" (")[0] for part in found["parts"]] == [
        "after 1 updates",
        "after 1,000 updates",
        "after 20,000 updates",
    ]
    other = walks(1.0, 0.2).with_columns(width=pl.lit(32, pl.Int64), run=pl.col("run") + "-other")
    mixed = verdicts(pl.concat([walks(1.0, 0.2), other]))["UPL-5"]
    assert (mixed["verdict"], "width" in mixed["reason"]) == ("not_run", True)


STATISTICS = (("weight_norm", "all"), ("weight_rank", "all"), ("dead_units", "all"), ("feature_rank", "hidden2"))


def following(signs):
    """Statistics that go with the rise by the sign of the labels, and at another place the other way."""

    def measured(rise, kind, rng):
        found = {name: signs[kind] * rise + rng.normal(scale=0.01) for name in STATISTICS}
        return {**found, **{(name, "hidden1"): -found[name, place] for name, place in STATISTICS if place == "all"}}

    return measured


def test_signs_that_flip_and_signs_that_do_not():
    flipping = experiments(statistics=following({"true": 1, "random": -1}), starts=5.0)
    constant = experiments(statistics=following({"true": 1, "random": 1}))
    nothing = experiments(statistics=lambda rise, kind, rng: {name: rng.normal() for name in STATISTICS})
    assert outcomes(flipping, "7") == ["holds"]
    assert outcomes(nothing, "7") == ["inconclusive"]
    assert outcomes(constant, "7") == ["inconclusive"], "two settings are few"
    sparse = experiments(labels=("true",), goal="sparse", statistics=following({"true": 1}))
    assert outcomes(pl.concat([constant, sparse]), "7") == ["fails"]
    signs = [part["parts"][0]["measured"] for part in verdicts(flipping)["UPL-7"]["parts"]]
    assert len(signs) == 4
    assert all(sign < -0.9 for sign in signs)


def test_one_statistic_of_one_sign_is_enough_to_fail_and_one_without_a_flip_to_decide_nothing():
    def one_constant(rise, kind, rng):
        return {**following({"true": 1, "random": -1})(rise, kind, rng), STATISTICS[1]: rise}

    def frame(statistics):
        parts = [experiments(statistics=statistics), experiments(goal="sparse", statistics=statistics)]
        return pl.concat(parts)

    assert outcomes(frame(one_constant), "7") == ["fails"]

    def one_unrelated(rise, kind, rng):
        return {**one_constant(rise, kind, rng), STATISTICS[1]: rng.normal()}

    assert outcomes(frame(one_unrelated), "7") == ["inconclusive"]


def test_agents_of_one_correlation_are_alike_and_count_once():
    frame = experiments(labels=("true",), statistics=following({"true": 1}))
    wider = experiments(labels=("true",), width=256, statistics=following({"true": -1}))
    again = frame.with_columns(pl.lit("falsification").alias("experiment"), run="again " + pl.col("run"))
    found = correlations(pl.concat([frame, wider, again]))
    assert list(found["weight_norm"]) == [
        "mnist_digits, mlp, true labels, adam, width 128",
        "mnist_digits, mlp, true labels, adam, width 256",
    ]
    narrow, wide = found["weight_norm"].values()
    assert (narrow.value > 0.9, wide.value < -0.9) == (True, True)
    alone = correlations(frame)["weight_norm"]["mnist_digits, mlp, true labels, adam"]
    assert narrow == alone, "the same agents in two experiments are not twice as many"
    earlier = pl.when(pl.col("step") > 1).then(pl.col("step") // 100).otherwise(pl.col("step"))
    short = frame.with_columns(updates=pl.lit(10, pl.Int64), step=earlier)
    assert correlations(short)["weight_norm"] == {}
    gone = frame.filter((pl.col("seed") != 0) | (pl.col("step") == 1))
    died = frame.filter((pl.col("seed") == 0) & (pl.col("metric") == "weight_norm") & (pl.col("place") == "all"))
    lost = pl.concat([gone, died, died.with_columns(metric=pl.lit("diverged"))])
    assert correlations(lost)["weight_norm"].popitem()[1].n == SEEDS - 1, "agents that diverged are no points"
    few = frame.filter((pl.col("seed") < 5) & (pl.col("treatment") == "none") & (pl.col("output") == "scalar"))
    assert correlations(few)["weight_norm"] == {}, "five agents are too few"
    assert outcomes(few, "7") == ["not_run"]


def test_width():
    assert outcomes(widths({16: 0.5, 64: 0.4, 256: 0.3}), "14") == ["holds"]
    assert outcomes(widths({16: 0.3, 64: 0.3, 256: 0.5}), "14") == ["fails"]
    gone = verdicts(widths({16: 0.3, 64: 0.1, 256: -0.1}))["UPL-14"]
    assert [part["verdict"] for part in gone["parts"][:2]] == ["holds", "fails"]
    assert gone["parts"][0]["measured"] == pytest.approx(-0.1, abs=0.01)
    assert [part["name"] for part in gone["parts"][2:]] == [
        f"{what}, target copied every {period} (reported, not claimed)"
        for period in (1, 100)
        for what in ("slope", "rise at the largest width")
    ]
    assert not any("run away" in told for told in summary(widths({16: 0.3, 64: 0.1})))
    wild = widths({16: 0.3, 64: 0.1, 256: 0.1})
    gone_wild = (pl.col("width") == 256) & (pl.col("target_period") == 1) & (pl.col("place") == "final")
    wild = wild.with_columns(value=pl.when(gone_wild & (pl.col("step") > 1)).then(1e9).otherwise("value"))
    found = verdicts(wild)["UPL-14"]
    assert found["verdict"] == "fails"
    assert [part["verdict"] for part in found["parts"][2:]] == ["fails", "holds", "holds", "holds"]
    assert any(f"{SEEDS} of {6 * SEEDS} agents" in told and "width 256, target copied every 1)" in told
               for told in summary(wild))  # fmt: skip
    assert outcomes(widths({16: 0.3}), "14") == ["not_run"]
    held = widths({16: 0.5, 64: 0.4, 256: 0.3})
    for field, value, told in (
        ("network", "cnn", "not cnn"),
        ("treatment", "layer_norm", "layer_norm"),
        ("output", "two_hot", "two_hot"),
    ):
        other = held.with_columns(pl.lit(value).alias(field), run=pl.col("run") + value)
        found = verdicts(other)["UPL-14"]
        assert (found["verdict"], told in found["reason"]) == ("not_run", True), found
        both = verdicts(pl.concat([held, other]))["UPL-14"]
        assert (both["verdict"], field in both["reason"]) == ("not_run", True), both


def test_what_was_not_run_or_is_mixed_is_said_to_be_so():
    everything = {claim["id"] for claim in evaluate(CLAIMS, walks(1.0, 0.2)) if claim["verdict"] != "not_run"}
    assert everything == {"UPL-5", "UPL-6"}
    mixed = pl.concat([experiments(labels=("true",)), experiments(labels=("true",), batch=64)])
    found = verdicts(mixed)["UPL-8"]
    assert (found["verdict"], "batch" in found["reason"]) == ("not_run", True)
    short = experiments(labels=("true",), updates=10).filter(pl.col("step") == 1)
    assert "at least 1000 updates" in verdicts(short)["UPL-8"]["reason"]


def test_figures_tables_and_summary_of_every_part():
    def held(rise, kind, rng):
        return {name: rise + rng.normal(scale=0.1) for name in STATISTICS}

    parts = [experiments(statistics=held), walks(1.0, 0.2), widths({16: 0.5, 64: 0.4})]
    drawn = {figure.name for part in parts for figure in STUDY.figures if figure.draw(part) is not None}
    assert drawn == {
        "walk_curvature", "walk_interference", "walk_density", "cosines_gradient", "cosines_walk", "probe_loss", "rise",
        "agents_curvature", "falsification", "width",
    }  # fmt: skip
    told = summary(parts[0])
    assert len(told) == 2
    for text in told:
        rises = {name: float(rise) for name, rise in re.findall(r"(two-hot|layer norm) ([+-][\d.]+) \(", text)}
        assert rises == {"two-hot": pytest.approx(0.1, abs=0.02), "layer norm": pytest.approx(0.2, abs=0.02)}
    header, rows = beside_the_paper(parts[0])
    assert len(rows) == 2 * len(AS_CLAIMED)
    row = next(dict(zip(header, row, strict=True)) for row in rows if row[1] == "layer norm")
    assert (row["paper: initial"], row["paper: final"], row["paper: rise"]) == ("-", "0.60", "0.43")
    assert row["initial"] == "0.20 ± 0.00"
    assert float(row["rise"].split(" ± ")[0]) == pytest.approx(0.2, abs=0.02)
    assert float(row["regret"].split(" ± ")[0]) == pytest.approx(0.3, abs=0.02)
    assert beside_the_paper(parts[1]) is None


def test_the_paper_s_own_table():
    assert published(RISE, "cifar10", "shrink_perturb", "scalar", "resnet18") == "0.79 ± 0.21"
    assert published(RISE, "mnist_digits", "none", "scalar", "vit") == "0.06"
    assert published(FINAL, "cifar10", "none", "two_hot", "mlp") == "0.49"
    assert published(RISE, "cifar10", "layer_norm", "scalar", "vit") == "-"
    assert published(RISE, "digits", "none", "scalar", "mlp") == "-"
    for treatment in ("none", "layer_norm"):
        tables = [each["cifar10"][treatment, "scalar"] for each in (INITIAL, FINAL, RISE)]
        for network in tables[0]:
            initial, final, rise = (table[network][0] for table in tables)
            assert final - initial == pytest.approx(rise, abs=0.0101), "two roundings"


# Configurations, networks and scripts -----------------------------------------------------------------------------

TINY = AgentConfig(
    data="digits", width=8, iterations=4, updates=10, probe_every=2, batch=8, capacity=50, target_period=10,
    probe_targets=2, probe_steps=3, probe_samples=16,
)  # fmt: skip


def batch(config, rows=8) -> Transitions:
    environment = stream(config)[0].environment
    shape = environment.images.input_shape
    x = jax.random.uniform(jax.random.key(0), (2, rows, *shape))
    actions = jnp.arange(rows, dtype=jnp.int32) % environment.classes
    return Transitions(x[0], actions, jnp.ones(rows), jnp.full(rows, 0.99), x[1], 0.0, 0.0, 0.0)


@pytest.mark.parametrize("treatment", list(TREATMENTS))
def test_every_treatment_changes_what_it_says(treatment):
    config = replace(TINY, treatment=treatment)
    events = script(config, tuple(stream(config)))
    changes = [event.intervention for event in events if isinstance(event, Intervene)]
    at_target = treatment in ("reset_last", "shrink_perturb", "reset_optimizer", "redo")
    assert len(changes) == (3 if at_target else 0), "at every copy of the target but the one at the end"
    network = maker(config)(jax.random.key(0))
    layers = jax.tree.leaves(network, is_leaf=lambda node: isinstance(node, LayerNorm | SpectralNorm))
    normed = [layer for layer in layers if isinstance(layer, LayerNorm | SpectralNorm)]
    assert len(normed) == {"layer_norm": 2, "spectral_norm": 1}.get(treatment, 0)
    made, plain = learner(config), learner(TINY)
    state, bare = (each.init(jax.random.key(0)) for each in (made, plain))
    data = batch(config)
    view, other = made.view(state), plain.view(bare)
    differs = float(view.loss(view.network, data, None)) - float(other.loss(other.network, data, None))
    assert (differs != 0) == (treatment in ("layer_norm", "spectral_norm", "weight_decay"))
    if treatment == "weight_decay":
        squares = sum(float(jnp.sum(jnp.square(leaf))) for leaf in jax.tree.leaves(split_trainable(view.network)[0]))
        assert differs == pytest.approx(1e-5 * squares, rel=0.05)
    if treatment == "spectral_norm":
        assert any(isinstance(layer, SpectralNorm) for layer in network.stage("hidden1").layers)


def test_strengths_are_those_of_the_specification():
    at_target = {name: treatment.at_target for name, treatment in TREATMENTS.items() if treatment.at_target is not None}
    assert at_target == {
        "reset_last": LeaveFollowers(Reset(stages=("head",))),
        "shrink_perturb": LeaveFollowers(ShrinkPerturb(shrink=0.8, perturb=0.2)),
        "reset_optimizer": ResetOptimizer(),
        "redo": LeaveFollowers(Redo(tau=0.025)),
    }


@pytest.mark.parametrize("path", ["agent", "walk"])
def test_the_loss_is_the_whole_squared_error_to_the_best_value_of_the_target_network(path):
    """f - (r + gamma max f_target), and SGD on it at the rate that is given."""
    if path == "agent":
        config = replace(TINY, optimizer="sgd", learning_rate=0.1)
        made = learner(config)
    else:
        config = WalkConfig(data="digits", pool=1, width=8, learning_rate=0.1)
        made = walk_learner(config)
    state, data = made.init(jax.random.key(0)), batch(TINY)
    for number in range(10):  # the target network stays behind, and prefers other actions
        state, _ = made.update(state, data, jax.random.key(number))
    online, target = state.networks["online"], state.networks["target"]

    def loss(network):
        values, following = network(data.observations).output, target(data.next_observations).output
        wanted = jax.lax.stop_gradient(data.rewards + data.discounts * jnp.max(following, axis=1))
        return jnp.mean(jnp.square(wanted - values[jnp.arange(8), data.actions]))

    preferred = [np.argmax(each(data.next_observations).output, axis=1) for each in (online, target)]
    assert (preferred[0] != preferred[1]).any()
    view = made.view(state)
    assert float(view.loss(view.network, data, None)) == pytest.approx(float(loss(online)), rel=1e-5)
    parameters, rest = split_trainable(online)
    gradient = jax.grad(lambda p: loss(eqx.combine(p, rest)))(parameters)
    moved = split_trainable(made.update(state, data, jax.random.key(9))[0].networks["online"])[0]
    for after, before, slope in zip(*map(jax.tree.leaves, (moved, parameters, gradient)), strict=True):
        np.testing.assert_allclose(after, before - 0.1 * slope, atol=1e-6)


def test_experience_is_what_the_configuration_says():
    for config in (TINY, replace(TINY, labels="random", goal="sparse", capacity=70, epsilon=0.3)):
        gathered, environment = source(config), stream(config)[0].environment
        assert (gathered.batch_size, gathered.period, gathered.discount) == (8, 1, 0.99)
        assert gathered.learning_starts == gathered.capacity == config.capacity
        assert float(gathered.epsilon(1)) == pytest.approx(config.epsilon)
        assert (environment.labels, environment.goal) == (config.labels, config.goal)


def test_the_probe_task_is_what_the_configuration_says():
    tasks = tuple(stream(TINY))
    fitted = [
        (probe.function, event.samples)
        for event in script(TINY, tasks)
        if isinstance(event, Probe)
        for probe in event.probes
        if getattr(probe, "name", "") == "plasticity"
    ]
    earlier, last = (ProbeTask(targets=2, steps=3, batch_size=8, fresh=fresh) for fresh in (False, True))
    assert fitted == [(earlier, 16), (earlier, 16), (last, 16)]


def test_settings_of_the_paper():
    plan = make_plan(STUDY, Request("plasticity", "paper", experiments=("interventions", "walk", "atari")))
    runs = {name: [r.config for r in plan.runs.values() if r.experiment == name] for name in ("interventions", "walk")}
    agents = {
        (c.width, c.iterations * c.updates, c.probe_every * c.updates, c.probe_targets, c.probe_steps, c.epsilon, c.l2)
        for c in runs["interventions"]
    }
    assert agents == {(512, 100_000, 5_000, 10, 2_000, 0.1, 1e-5)}
    assert {c.target_period for c in runs["interventions"]} == {1_000}
    walked = {(c.width, c.batch, c.target_period, c.learning_rate, c.gradients) for c in runs["walk"]}
    assert walked == {(512, 512, 5_000, 1e-3, 512)}
    zoo = atari_agent(AtariConfig())
    assert (zoo.replay, zoo.epsilon_end, zoo.double, zoo.period, zoo.target_period) == (100_000, 0.1, True, 4, 7_500)
    assert (minatar_agent(GameConfig()).double, minatar_agent(GameConfig()).target_period) == (True, 1_000)


@pytest.mark.parametrize("output", ["scalar", "two_hot"])
def test_the_probe_task_reads_and_fits_what_the_outputs_stand_for(output):
    config = replace(TINY, output=output)
    made = learner(config)
    state = made.init(jax.random.key(0))
    view, data = made.view(state), batch(config)
    outputs = view.network(data.inputs).output
    form = values(config)
    assert outputs.shape == (8, form.outputs(10))
    np.testing.assert_allclose(view.decode(outputs), form.expected(form.by_action(outputs)), rtol=1e-6)
    targets = view.decode(outputs) + 0.5
    before = float(view.fit(outputs, targets))
    step = jax.grad(lambda o: view.fit(o, targets))(outputs)
    assert float(view.fit(outputs - 0.1 * step, targets)) < before
    if output == "scalar":
        assert before == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize(("name", "expected"), [("adam", optax.adam(0.02)), ("sgd", optax.sgd(0.02))])
def test_the_probe_task_is_trained_by_the_agent_s_optimiser(name, expected):
    made = learner(replace(TINY, optimizer=name, learning_rate=0.02))
    optimizer = made.view(made.init(jax.random.key(0))).optimizer
    weights, gradients = {"w": jnp.array([1.0, -2.0])}, {"w": jnp.array([0.5, 3.0])}
    steps = []
    for each in (optimizer, expected):
        state, parameters = each.init(weights), weights
        for _ in range(3):
            updates, state = each.update(gradients, state, parameters)
            parameters = optax.apply_updates(parameters, updates)
        steps.append(np.asarray(parameters["w"]))
    np.testing.assert_array_equal(*steps)


def test_the_support_covers_the_returns():
    form = values(replace(TINY, output="two_hot"))
    assert (float(form.centres[0]), float(form.centres[-1]), len(form.centres)) == (-1.0, pytest.approx(100.0), 51)


def test_looks_come_before_changes_and_every_copy_of_the_target_is_followed():
    config = replace(TINY, treatment="reset_last")
    events = script(config, tuple(stream(config)))
    at, seen = 0, []
    for event in events:
        if isinstance(event, Train):
            at += event.steps
        elif isinstance(event, Probe):
            seen.append((at, "look"))
        elif isinstance(event, Intervene):
            seen.append((at, "change"))
    assert at == 40
    assert list(dict.fromkeys(seen)) == [
        (1, "look"), (10, "change"), (20, "look"), (20, "change"), (30, "change"), (40, "look"),
    ]  # fmt: skip


def test_agents_learn_alike_whether_they_are_looked_at_or_not_and_end_beside_a_fresh_network():
    config = replace(TINY, treatment="reset_last", target_period=20, probe_every=4)

    def bare(config, tasks):
        return tuple(event for event in script(config, tasks) if not isinstance(event, Probe))

    found = []
    for experiment in (interventions, replace(interventions, script=bare)):
        runner = Runner(experiment, [replace(config, seed=seed) for seed in range(2)], ["zero", "one"])
        records = [record for tick in runner.ticks() for record in tick.records]
        arrays = {name: array for name, array in runner.arrays().items() if "learner" in name or "source" in name}
        found.append((records, arrays))
    (looked, one), (_, other) = found
    assert {record.env_steps for record in looked if record.step == 1} == {51}, "the replay is full before it learns"
    assert one.keys() == other.keys()
    assert any("online" in name for name in one)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    places = {(record.step, record.place) for record in looked if record.metric == "plasticity"}
    usual = {"initial", "final", "baseline", "diverged"}
    assert places == {(step, place) for step in (1, 40) for place in usual} | {(40, "regret")}


@pytest.mark.parametrize("network", ["cnn", "vit"])
def test_small_networks_of_the_paper_learn_by_q_learning(network):
    config = replace(TINY, network=network)
    made, data = learner(config), batch(config)
    update = eqx.filter_jit(made.update)
    state, losses = made.init(jax.random.key(0)), []
    for number in range(30):
        state, metrics = update(state, data, jax.random.key(number))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]


def test_residual_networks_learn_by_q_learning_and_keep_their_moments():
    narrow = dqn(resnet((8, 8, 1), 10, depth=18, width=0.0625), optax.adam(1e-2), double=False)
    state, data = narrow.init(jax.random.key(0)), batch(TINY)
    update, losses = eqx.filter_jit(narrow.update), []
    for number in range(20):
        state, metrics = update(state, data, jax.random.key(number))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0]
    nodes = jax.tree.leaves(state.networks["online"], is_leaf=lambda node: isinstance(node, BatchNorm))
    norms = [node for node in nodes if isinstance(node, BatchNorm)]
    assert len(norms) == 20
    assert all(np.abs(norm.mean.value).max() > 0 for norm in norms)
    config = replace(TINY, network="resnet18")
    whole = eqx.filter_eval_shape(lambda key: maker(config)(key), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(whole)) > 11_000_000


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (AgentConfig, {"iterations": (12,)}, "multiple of probe_every"),
        (AgentConfig, {"network": ("vit",), "treatment": ("layer_norm",)}, "for the networks mlp and cnn"),
        (AgentConfig, {"network": ("resnet18",), "treatment": ("spectral_norm",)}, "for the networks mlp and cnn"),
        (AgentConfig, {"epsilon": (1.5,)}, "epsilon is a probability"),
        (AgentConfig, {"l2": (-1.0,)}, "l2 must not be negative"),
        (AgentConfig, {"seed": (-1,)}, "seed must not be negative"),
        (AgentConfig, {"learning_rate": (0.0,)}, "learning_rate must be positive"),
        (WalkConfig, {"lanczos": (0,)}, "lanczos must be positive"),
        (GameConfig, {"frames": (1_001,)}, "frames must be a multiple"),
        (AtariConfig, {"evaluate_every": (100,)}, "evaluate_every"),
    ],
)
def test_values_out_of_range_are_refused(config, changes, message):
    with pytest.raises(UsageError, match=message):
        configs.product(config, changes)


def test_the_walk_is_looked_at_when_the_paper_does():
    config = WalkConfig(data="digits", pool=1, width=8)
    assert times(config) == (1, 1_000, 20_000, 25_000)
    events = walk_script(config, tuple(walk_stream(config)))
    assert sum(event.steps for event in events if isinstance(event, Train)) == 25_000
    one, two = (walk_learner(replace(config, path=path)).init(jax.random.key(0)) for path in ("gradient", "walk"))
    assert set(two.networks) - set(one.networks) == {"leader_online", "leader_target"}
    assert eqx.tree_equal(one.networks["online"], two.networks["online"])


@pytest.mark.parametrize("preset", list(STUDY.presets))
def test_every_preset_resolves(preset):
    plan = make_plan(STUDY, Request("plasticity", preset))
    kinds = {run.experiment for run in plan.runs.values()}
    agents = {"walk", "interventions", "width"}
    assert (
        kinds
        == {
            "smoke": {"case1", "remedies", "games"} | agents,
            "demo": {"case1", "remedies"},
            "quick": {"case1", "remedies", "combined", "falsification"} | agents,
            "quick_full": {"case1"},
            "minatar": {"games"},
            "paper": {"case1", "remedies", "combined", "falsification", "games", "atari"} | agents,
            "paper_long": {"interventions"},
        }[preset]
    )
    chosen = {(r.config.treatment, r.config.output) for r in plan.runs.values() if r.experiment == "interventions"}
    if preset in ("quick", "paper", "paper_long"):
        assert chosen >= set(AS_CLAIMED) | {("spectral_norm", "scalar")}
        if preset == "quick":
            seeds = {r.config.seed for r in plan.runs.values() if r.experiment == "interventions"}
            assert len(seeds) == 5
    if preset == "paper":
        assert sum(run.experiment == "falsification" for run in plan.runs.values()) == 128
        assert sum(run.experiment == "atari" for run in plan.runs.values()) == 57 * 2 * 3
        assert len(set(ATARI)) == 57
        networks = {run.config.network for run in plan.runs.values() if run.experiment == "interventions"}
        assert networks == {"mlp", "cnn", "resnet18", "vit"}


def test_nothing_but_the_norm_differs_between_games():
    with_norm, without = (GameConfig(frames=1_000, layer_norm=norm) for norm in (True, False))
    networks = [
        eqx.filter_eval_shape(game_learner(config).init, jax.random.key(0)).networks["online"]
        for config in (with_norm, without)
    ]
    added = [len(jax.tree.leaves(network)) for network in networks]
    assert added[0] - added[1] == 4  # scale and bias of two hidden layers
    events = game_script(with_norm, tuple(minatar_stream(with_norm)))
    assert sum(event.steps for event in events if isinstance(event, Train)) == 1_000
