"""The plasticity study's claims on records made up so that the right verdict is known, and what its axes say."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import optax
import polars as pl
import pytest

from neoteny.analysis.claims import evaluate
from neoteny.errors import UsageError
from neoteny.lab import configs
from neoteny.lab.plan import Request, make_plan
from neoteny.networks import split_trainable
from neoteny.probes import dead_units
from neoteny.studies.plasticity import CLAIMS, STUDY, summary
from neoteny.studies.plasticity.labels import REMEDIES, Config, case1, learner, script, stream
from neoteny.training import Evaluate, Intervene, Probe, Switch, Train
from plasticity_runs import case1_fields

TASKS, SEEDS = 9, 6
LABELS = ("UPL-1", "UPL-2", "UPL-3", "UPL-4")
LEVELS = {
    (0.999, 0.0): np.linspace(95, 20, TASKS),
    (0.9, 0.0): np.full(TASKS, 90.0),
    (0.999, 1e-3): np.full(TASKS, 85.0),
    (0.9, 1e-3): np.full(TASKS, 96.0),
}
DEAD = {
    (0.999, 0.0): np.linspace(0, 0.9, TASKS),
    (0.9, 0.0): np.full(TASKS, 0.1),
    (0.999, 1e-3): np.full(TASKS, 0.1),
    (0.9, 1e-3): np.zeros(TASKS),
}


def records(levels=LEVELS, dead=DEAD, settings=tuple(LEVELS)) -> pl.DataFrame:
    rng, rows = np.random.default_rng(0), []
    for b2, root in settings:
        for seed in range(SEEDS):
            common = case1_fields(b2, root, seed, TASKS)
            for task in range(TASKS):
                accuracy = levels[b2, root][task] / 100 + rng.normal(scale=0.005)
                share = dead[b2, root][task]
                rows.append({**common, "task": task, "metric": "accuracy", "place": "", "value": accuracy})
                rows.append({**common, "task": task, "metric": "dead_units", "place": "all", "value": share})
    return pl.DataFrame(rows)


def verdicts(frame: pl.DataFrame) -> dict[str, dict]:
    return {claim["id"]: claim for claim in evaluate(CLAIMS, frame)}


def test_what_the_paper_says_holds_where_it_is_so():
    found = verdicts(records())
    assert [found[name]["verdict"] for name in LABELS] == ["holds"] * 4
    assert {claim["verdict"] for name, claim in found.items() if name not in LABELS} == {"not_run"}
    third = LEVELS[0.999, 0.0]
    expected = third[-3:].mean() - third[:3].mean()
    assert found["UPL-1"]["measured"] == pytest.approx(expected, abs=1.0)
    b2, root, interaction = found["UPL-4"]["parts"]
    none, one, two, both = (levels[-3:].mean() for levels in LEVELS.values())
    assert b2["measured"] == pytest.approx((one + both - none - two) / 2, abs=1.0)
    assert root["measured"] == pytest.approx((two + both - none - one) / 2, abs=1.0)
    assert interaction["measured"] == pytest.approx(both - one - two + none, abs=1.0)


def test_it_fails_where_the_opposite_is_so():
    flat = {setting: np.full(TASKS, 95.0) for setting in LEVELS}
    falling = {**flat, (0.9, 1e-3): np.linspace(95, 20, TASKS)}
    alive = {setting: np.zeros(TASKS) for setting in LEVELS}
    assert verdicts(records(levels=flat))["UPL-1"]["verdict"] == "fails"
    assert verdicts(records(levels=falling))["UPL-2"]["verdict"] == "fails"
    assert verdicts(records(dead=alive))["UPL-3"]["verdict"] == "fails"
    assert verdicts(records(levels=falling))["UPL-4"]["verdict"] == "fails"


def test_an_interaction_decides_nothing():
    levels = {**LEVELS, (0.9, 1e-3): np.full(TASKS, 91.0)}
    found = verdicts(records(levels=levels))["UPL-4"]
    assert found["parts"][2]["measured"] < 0
    assert found["verdict"] == "holds"


def test_what_was_not_run_is_said_to_be_so():
    found = verdicts(records(settings=((0.999, 0.0),)))
    assert [found[name]["verdict"] for name in LABELS] == ["holds", "not_run", "not_run", "not_run"]
    short = records().filter(pl.col("task") < 2).with_columns(tasks=2)
    assert {claim["verdict"] for claim in verdicts(short).values()} == {"not_run"}


@pytest.mark.parametrize(("field", "value"), [("learning_rate", 1e-4), ("width", 16), ("l2", 1e-4)])
def test_claims_are_not_decided_over_a_mixture(field, value):
    frame = records()
    other = frame.with_columns(pl.lit(value).cast(frame[field].dtype).alias(field), pl.col("run") + "-other")
    mixed = pl.concat([frame, other])
    found = verdicts(mixed)
    assert {claim["verdict"] for claim in found.values()} == {"not_run"}
    assert field in found["UPL-1"]["reason"]
    figures = {figure.name: figure.draw(mixed) for figure in STUDY.figures[:2]}
    assert all(len(figure.axes) == 2 for figure in figures.values()), "a panel for each"
    assert field in summary(mixed)[0]


def test_unfinished_runs_decide_nothing_and_diverged_ones_are_counted():
    frame = records()
    unfinished = frame.filter((pl.col("seed") != 0) | (pl.col("task") < 6))
    assert verdicts(unfinished)["UPL-1"]["n"] == SEEDS - 1
    lost = (
        (pl.col("metric") == "dead_units") & (pl.col("seed") == 1) & (pl.col("adam_b2") == 0.999) & (pl.col("task") > 3)
    )
    diverged = verdicts(frame.filter(~lost))
    assert diverged["UPL-1"]["n"] == SEEDS
    assert diverged["UPL-3"]["parts"][0]["n"] == SEEDS - 1
    assert diverged["UPL-3"]["verdict"] == "holds"


def test_remedies_do_not_enter_the_factorial():
    frame = records()
    remedied = frame.with_columns(pl.lit("remedies").alias("experiment"), pl.col("value") * 0, pl.col("run") + "-r")
    assert verdicts(pl.concat([frame, remedied])) == verdicts(frame)


def test_the_summary_warns_of_stability_without_fit():
    low = {**LEVELS, (0.9, 1e-3): np.full(TASKS, 20.0)}
    assert not any("Mind the level" in text for text in summary(records()))
    assert any("Mind the level" in text for text in summary(records(levels=low)))


@pytest.mark.parametrize("preset", ["smoke", "demo", "quick", "quick_full", "paper"])
def test_presets_resolve_to_the_factorial(preset):
    plan = make_plan(STUDY, Request("plasticity", preset, experiments=("case1", "remedies")))
    settings = {(r.config.adam_b2, r.config.adam_eps_root) for r in plan.runs.values() if r.experiment == "case1"}
    seeds = {
        (r.config.adam_b2, r.config.adam_eps_root, r.config.seed) for r in plan.runs.values() if r.experiment == "case1"
    }
    assert len(seeds) == len(settings) * (2 if preset == "smoke" else 4 if preset == "demo" else 5)
    width = {"smoke": 16, "demo": 128, "quick": 512, "quick_full": 1024, "paper": 1024}[preset]
    assert {r.config.width for r in plan.runs.values()} == {width}
    remedies = {r.config.remedy for r in plan.runs.values() if r.experiment == "remedies"}
    expected = {"smoke": 2, "demo": 2, "quick": 1, "quick_full": 0}.get(preset, len(REMEDIES) - 1)
    assert len(remedies) == expected
    if preset == "quick_full":
        assert settings == {(0.999, 0.0), (0.9, 1e-3)}
    else:
        assert settings == {(0.999, 0.0), (0.9, 0.0), (0.999, 1e-3), (0.9, 1e-3)}


def test_the_demo_is_the_same_runs_as_ever():
    """Names are hashes of study, experiment and configuration: stored results stay readable under them."""
    plan = make_plan(STUDY, Request("plasticity", "demo"))
    assert len(plan.runs) == 24
    assert sorted(plan.runs)[:3] == ["07470b77f450", "079f10d0477a", "0d3e8a606745"]


@pytest.mark.parametrize("setting", list(LEVELS))
def test_adam_equals_a_reference_in_float64_with_eps_root_inside_the_root(setting):
    b2, root = setting
    made = learner(replace(Config(data="digits", width=4), adam_b2=b2, adam_eps_root=root))
    state = made.init(jax.random.key(0))
    name, states = "head", state.optimizer["online"]["head"]
    optimizer = made.view(state).optimizer
    parameters, _ = split_trainable(state.networks["online"].stage(name))
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(parameters)]
    m, v = ([np.zeros_like(leaf) for leaf in leaves] for _ in range(2))
    plain, plain_states = optax.adam(1e-3, b2=b2, eps=1e-9), None
    rng = np.random.default_rng(0)
    # From where the epsilon outside the root is all there is to where it is nothing.
    scales = [10.0 ** rng.integers(-10, 1, size=leaf.shape) for leaf in leaves]
    update = jax.jit(optimizer.update)
    for step in range(1, 101):
        gradients = [rng.normal(size=leaf.shape) * scale for leaf, scale in zip(leaves, scales, strict=True)]
        tree = jax.tree.unflatten(jax.tree.structure(parameters), [np.float32(g) for g in gradients])
        changes, states = update(tree, states, parameters)
        if root == 0:
            plain_states = plain.init(parameters) if plain_states is None else plain_states
            others, plain_states = jax.jit(plain.update)(tree, plain_states, parameters)
            assert all((a == b).all() for a, b in zip(*map(jax.tree.leaves, (changes, others)), strict=True))
        for index, (leaf, gradient) in enumerate(zip(jax.tree.leaves(changes), gradients, strict=True)):
            m[index] = 0.9 * m[index] + 0.1 * gradient
            v[index] = b2 * v[index] + (1 - b2) * gradient**2
            mean, square = m[index] / (1 - 0.9**step), v[index] / (1 - b2**step)
            expected = -1e-3 * mean / (np.sqrt(square + root) + 1e-9)
            np.testing.assert_allclose(leaf, expected, rtol=2e-3, atol=1e-9)


def test_new_labels_change_labels_only_and_agree_by_chance():
    one, two = stream(Config(data="digits", tasks=2))
    assert one.data is two.data
    assert one.transform == two.transform
    targets = np.asarray(one.data.targets)
    drawn = [one.transform.draw(jax.random.fold_in(jax.random.key(0), i), targets, 64) for i in (0, 1)]
    inputs, labels = one.data.inputs[:9], targets[:9]
    shown = [one.transform(each, inputs, labels, np.arange(9)) for each in drawn]
    np.testing.assert_array_equal(shown[0][0], shown[1][0])
    np.testing.assert_array_equal(shown[0][0], inputs)
    agreement = float(np.mean(np.asarray(drawn[0]) == np.asarray(drawn[1])))
    assert abs(agreement - 0.1) < 4 * np.sqrt(0.09 / len(targets))


@pytest.mark.parametrize(
    "field", ["width", "depth", "batch", "tasks", "steps_per_task", "learning_rate", "adam_b2", "adam_eps_root", "seed"]
)
def test_values_out_of_range_are_refused(field):
    with pytest.raises(UsageError, match=field):
        configs.product(Config, {field: (-1 if configs.fields(Config)[field].type is int else -1.0,)})


@pytest.mark.parametrize("remedy", list(REMEDIES))
def test_every_remedy_changes_what_it_says(remedy):
    config = replace(Config(data="digits", width=8, tasks=2, steps_per_task=3), remedy=remedy)
    made = learner(config)
    plain = learner(replace(config, remedy="none"))
    events = script(config, tuple(stream(config)))
    interventions = [event for event in events if isinstance(event, Intervene)]
    assert len(interventions) == (2 if remedy in ("reset_last", "shrink_perturb", "redo") else 0)
    state, bare = (each.init(jax.random.key(0)) for each in (made, plain))
    layers = len(state.networks["online"].stage("hidden1").layers)
    assert layers == len(bare.networks["online"].stage("hidden1").layers) + (remedy == "layer_norm")
    data = stream(config)[0].data
    from neoteny.learners import Batch

    batch = Batch(data.inputs[:32], data.targets[:32])
    view, bare_view = made.view(state), plain.view(bare)
    differs = float(view.loss(view.network, batch, None)) != float(bare_view.loss(bare_view.network, batch, None))
    assert differs == (remedy in ("l2", "layer_norm")), "l2_to_init is zero at the start"
    name, states = "head", (made.init(jax.random.key(0)), plain.init(jax.random.key(0)))
    moved = [
        np.asarray(each.update(state, batch, jax.random.key(1))[0].networks["online"].stage(name).bias)
        for each, state in zip((made, plain), states, strict=True)
    ]
    ratio = np.abs(moved[0]).mean() / np.abs(moved[1]).mean()
    assert ratio == pytest.approx(1 / 3 if remedy == "third_rate" else 1, rel=0.05)


def test_networks_are_looked_at_before_the_labels_are_drawn_anew():
    config = Config(data="digits", tasks=2, remedy="reset_last")
    events = script(config, tuple(stream(config)))
    kinds = list(dict.fromkeys(type(event) for event in events))
    assert kinds == [Switch, Train, Evaluate, Probe, Intervene]
    one, other = events[: len(events) // 2], events[len(events) // 2 :]
    assert [type(event) for event in one] == [type(event) for event in other]
    assert [event.samples for event in one if isinstance(event, Evaluate)] == [4_096]
    counted = next(event for event in one if isinstance(event, Probe) and dead_units in event.probes)
    assert counted.samples is None, "on all images: a sample overstates"


def test_until_fitted_bounds_the_task():
    config = replace(Config(data="digits", until_fitted=True), batch=64)
    trains = [event for event in script(config, tuple(stream(config))) if isinstance(event, Train)]
    rows = len(stream(config)[0].rows("train"))
    assert all(event.until is not None and event.until.window == -(-rows // 64) for event in trains)
    assert case1.source is not None
    assert case1.source(config).batch_size == 64
